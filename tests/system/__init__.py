"""What systemd, an installer and an operator's machine make of the files in `systemd/` and `config/`."""
