"""Third-party methods, run as their authors run them. Each needs packages that this project itself does not."""
