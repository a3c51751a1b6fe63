"""One program on many devices: cut at its collectives, pieces compiled by a backend, data exchanged by a
`Comm`.

    order        equations in the order in which they are cut
    schedule     the cut: a list scheduler
    steps        what a schedule is made of
    executable   pieces compiled by a backend; what `Backend.compile` gives for a mesh
    walk         one run of the steps
    donation     whether donated parameters were of use
    turns        one program after another in a job of several processes
    some         communication of some devices while others are elsewhere
    thread       exchanges at once, or beside what is computed
    direct       exchanges between the memories of devices, and what else a backend may offer
    stacks       rows of the arrays of loops
    collectives  equations to calls of a comm
    lockstep     the comm of devices in one process
    mpi          the comm of a job under mpirun
    ordered      reductions with the same bits on every comm
    agreement    one process chooses between ways to compute, the others are told

A backend calls `executable.compile(self, program, options)` when `options.mesh` is set, and offers
`host_devices(name)`, or `devices.accelerators(name, count)`.
"""

from infini.backends.spmd.devices import host_devices as host_devices, owns as owns
