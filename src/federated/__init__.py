"""The three roles of a federation and how weights travel between them; knows no detection."""
