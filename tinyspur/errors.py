"""What is raised where a theorem does not apply."""


class AssumptionError(ValueError):
    """A hypothesis of a theorem does not hold; the message says which, where and for whom."""
