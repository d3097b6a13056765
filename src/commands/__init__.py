"""What the tools do after parsing."""
