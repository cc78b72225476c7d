"""An app whose agents do what chaos runs and benchmarks need; add it by MAILBOX_EXTRA_APPS in the reference project."""
