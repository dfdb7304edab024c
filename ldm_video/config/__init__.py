"""Floor 0: configuration files (OmegaConf YAML) and building the parts that they name."""

from ldm_video.config.build import ALLOWED_PREFIXES, build, check_target, missing_arguments
from ldm_video.config.load import load_config, save_config

__all__ = ["ALLOWED_PREFIXES", "build", "check_target", "load_config", "missing_arguments", "save_config"]
