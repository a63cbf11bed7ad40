"""This package beside other clients of DynamoDB, in one interleaved run (`make bench`).

`stub` answers at once; `runner` drives one client in a process of its own, in an environment of its
own; a module for each client holds its operations; `__main__` runs them in turns; `report` prints.
"""
