// Whether this process serves disks to its own machine: then memory that it needs must not wait for those disks to be written to
// (prctl(2), PR_SET_IO_FLUSHER). It holds for a thread, so each takes part by itself. Knows no JavaScript.
#pragma once

namespace lunette {

// From now on, for this thread and all that call FollowIoFlusher. Returns 0; -EPERM without CAP_SYS_RESOURCE; -EINVAL before Linux 5.6;
// -ENOSYS elsewhere.
int BecomeIoFlusher();

// For a thread that does I/O, before it does any: cheap when there is nothing to do.
void FollowIoFlusher();

}  // namespace lunette
