"""What the Python interpreter of a workspace consists of. It runs inside the sandbox, under the name `_stateroom`.

Standard library only (cloudpickle is loaded where variables are saved), Python 3.8 or newer, relative imports only.
"""
