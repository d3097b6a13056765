"""What a job is to all who start it, take part or look on: its file, addresses, folder, records."""
