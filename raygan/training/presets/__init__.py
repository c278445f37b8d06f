"""Training presets: one YAML file each, which begins with what the preset is for."""
