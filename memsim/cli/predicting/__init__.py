"""Commands that say what a run would take, here or on a device that is not here."""
