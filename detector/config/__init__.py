"""Configuration: the registry of parts, YAML nodes with line numbers, and typed, frozen config objects."""
