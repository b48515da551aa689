"""What holds for every test: none asserts how long anything takes, Hypothesis's deadline included."""

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
