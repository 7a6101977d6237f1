"""Where somebody's prompt for ShieldGemma differs from the published ones, and why it matters."""
