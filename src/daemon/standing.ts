import { readFile, writeFile } from 'node:fs/promises';
import { errnoOf } from '../../formats/core/errors.ts';
import { becomeIoFlusher } from '../io/native.ts';
import type { ServerLog } from './log.ts';

/** The last to be ended for want of memory. */
const LAST = -1000;

/**
 * What a process needs of the system that serves disks to the machine on which it runs: memory without waiting for those disks, and to be
 * ended last when there is none. Where the system refuses that is said in the log.
 *
 * @param proc of this process, `/proc/self`
 */
export async function claimStanding(log: ServerLog, proc = '/proc/self'): Promise<void> {
  try {
    becomeIoFlusher();
  } catch (error) {
    log.warn(
      { error },
      `memory may wait for disks that we serve to this machine itself (${errnoOf(error) ?? error}): PR_SET_IO_FLUSHER needs CAP_SYS_RESOURCE and Linux 5.6`,
    );
  }
  const file = `${proc}/oom_score_adj`;
  try {
    if (Number(await readFile(file, 'utf8')) !== LAST) await writeFile(file, String(LAST));
  } catch (error) {
    log.warn({ error }, `when memory runs out this process may be ended (${errnoOf(error) ?? error}): ${file}`);
  }
}
