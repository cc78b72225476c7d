"""The plugin that `mailbox_app` gives to teams, as its README says to load it."""

pytest_plugins = ["mailbox_app.testing"]
