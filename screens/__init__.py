"""The terminal interface: the app, one module a screen, and their widgets. The only place that imports textual."""
