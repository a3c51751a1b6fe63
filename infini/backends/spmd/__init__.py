"""One program on many devices: cut at its collectives, pieces compiled by a backend, data exchanged by a
`Comm`.

    schedule     the cut
    executable   the walk over the steps, shared by all backends
    collectives  equations to calls of a comm
    lockstep     the comm of devices in one process
    mpi          the comm of a job under mpirun
    agreement    one process chooses between ways to compute, the others are told

A backend calls `executable.compile(self, program, options)` when `options.mesh` is set, and offers
`host_devices(name)`.
"""

from infini.backends.spmd.devices import host_devices as host_devices, owns as owns
