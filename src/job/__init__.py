"""A job as every command sees it: its federation file, addresses, folder and records."""
