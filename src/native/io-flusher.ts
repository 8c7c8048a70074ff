import { native } from './binding.ts';
import { ENOSYS, systemError } from './errno.ts';

/**
 * Memory that this thread, and those that do file I/O, need from now on never waits for data to be written to the disks that this process
 * serves to its own machine, which would wait for it in turn (prctl(2), PR_SET_IO_FLUSHER).
 *
 * @throws {Error} the system's error: EPERM without CAP_SYS_RESOURCE, EINVAL before Linux 5.6, ENOSYS without the addon
 */
export function becomeIoFlusher(): void {
  const result = native?.becomeIoFlusher() ?? ENOSYS;
  if (result !== 0) throw systemError(result, 'prctl');
}
