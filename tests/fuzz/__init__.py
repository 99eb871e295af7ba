"""Files and configurations that nobody sane would write: whatever they hold, no traceback reaches the user."""
