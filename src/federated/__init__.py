"""The three roles of a federation and the exchange of weights; independent of detection."""
