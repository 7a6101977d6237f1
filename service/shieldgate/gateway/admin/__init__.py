"""What the console shows operators, below `/admin/`: for keys with `admin: true`."""

from shieldgate.gateway.admin import decisions, drafts, figures, review, shadow

routers = (figures.router, decisions.router, drafts.router, review.router, shadow.router)
