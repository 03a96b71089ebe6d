"""How far a result may lie from the recorded one."""

LOGITS = 1e-4  # times max(1, standard deviation of the recorded values)
STAGES = 1e-4  # the same
GRADIENTS = 1e-3  # relative, or GRADIENT_FLOOR of the largest recorded norm
GRADIENT_FLOOR = 1e-6
OPERATORS = 1e-5  # times max(1, standard deviation)

# a family that needs more for its published sizes says so, and why, in its own file: FULL_SIZE_TOLERANCE
