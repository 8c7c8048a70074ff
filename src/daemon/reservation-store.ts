import { createHash } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { fromSystemError } from '../../formats/core/errors.ts';
import type { ReservationState, ReservationStore } from '../scsi/reservation-state.ts';
import { ReservationStateFile } from '../scsi/reservation-state-file.ts';

/**
 * Keeps the persistent reservations of one unit in a directory, which is made when there is something to keep.
 *
 * @param name for people who look into the directory
 * @param identity of the unit, unique and stable: another disk of the same name has a file of its own
 * @throws {StorageError} ACCESS, CORRUPT when there is a file that cannot be read
 */
export async function reservationStore(directory: string, name: string, identity: string): Promise<ReservationStore> {
  const hash = createHash('sha256').update(identity).digest('hex').slice(0, 12);
  const file = await ReservationStateFile.open(path.join(directory, `reservations-${name}-${hash}.json`));
  return {
    initial: file.initial,
    async save(state: ReservationState): Promise<void> {
      try {
        await mkdir(directory, { recursive: true, mode: 0o700 });
      } catch (error) {
        throw fromSystemError(error, 'cannot make the directory for persistent reservations', { path: directory });
      }
      await file.save(state);
    },
  };
}

/** Where state is kept unless told otherwise: the system's place for root, else the user's (XDG Base Directory Specification). */
export function defaultStateDirectory(
  env: Readonly<Record<string, string | undefined>>,
  privileged: boolean,
): string | undefined {
  if (privileged) return '/var/lib/lunette';
  if (env.XDG_STATE_HOME !== undefined && path.isAbsolute(env.XDG_STATE_HOME))
    return path.join(env.XDG_STATE_HOME, 'lunette');
  return env.HOME === undefined ? undefined : path.join(env.HOME, '.local', 'state', 'lunette');
}
