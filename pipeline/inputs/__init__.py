"""What a user may name as MODEL and as a text, and where it comes from: files, the hub, what is installed."""
