"""The primitive: its table of variants, its checks, its packing, its rules and their lowering."""
