"""SHOW in a terminal: a run at a glance, live, and what tells runs apart. Only `rich_frame` needs rich."""
