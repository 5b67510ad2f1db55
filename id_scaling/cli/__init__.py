"""Command line and the reports that people read; nothing else imports it."""
