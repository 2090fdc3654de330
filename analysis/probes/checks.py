"""What every probe checks of its settings."""


def check_positive(**settings: int) -> None:
    """Raise ValueError for a setting that is not a whole number of at least 1."""
    for name, value in settings.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value}")


def check_tol(tol: float) -> None:
    """Raise ValueError for a tolerance that is not positive."""
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}")
