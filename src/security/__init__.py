"""Certificates, their passwords, and encrypted connections."""
