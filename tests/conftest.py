from hypothesis import settings

# Examples have no deadline: a machine that stalls for a moment is no counterexample.
settings.register_profile("sluice", deadline=None)
settings.load_profile("sluice")
