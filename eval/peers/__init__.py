"""Other people's methods, run as their authors run them. Each needs packages that the project itself does not."""
