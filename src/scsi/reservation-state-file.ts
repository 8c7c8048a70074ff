import { open, readFile, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { errnoOf, fromSystemError, StorageError } from '../../formats/core/errors.ts';
import {
  isAllRegistrants,
  isReservationType,
  type Registration,
  type ReservationState,
  type ReservationStore,
} from './reservation-state.ts';
import { parseTransportId } from './transport-id.ts';

const VERSION = 1;
/** Far above what 256 registrations need. */
const MAX_FILE_LENGTH = 1024 * 1024;
const MAX_REGISTRATIONS = 256;

/**
 * Persistent reservations of one unit in a small JSON file: replaced as a whole, so that a crash leaves the old state or the new one.
 */
export class ReservationStateFile implements ReservationStore {
  readonly path: string;
  readonly initial: ReservationState | undefined;

  private constructor(path: string, initial: ReservationState | undefined) {
    this.path = path;
    this.initial = initial;
  }

  /** Loads the file; one that is missing is an empty state. @throws {StorageError} also CORRUPT for a file of another kind */
  static async open(path: string): Promise<ReservationStateFile> {
    let text: string;
    try {
      text = await readFile(path, 'utf8');
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return new ReservationStateFile(path, undefined);
      throw fromSystemError(error, 'reading persistent reservations', { path });
    }
    return new ReservationStateFile(path, parseState(text, path));
  }

  /** Writes beside the file, syncs, renames over it, syncs the folder. */
  async save(state: ReservationState): Promise<void> {
    const { path } = this;
    const temporary = `${path}.new`;
    try {
      const file = await open(temporary, 'w', 0o600);
      try {
        await file.writeFile(encodeState(state));
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(temporary, path);
      const folder = await open(dirname(path), 'r');
      try {
        await folder.sync();
      } finally {
        await folder.close();
      }
    } catch (error) {
      await rm(temporary, { force: true }).catch(() => undefined);
      throw fromSystemError(error, 'saving persistent reservations', { path });
    }
  }
}

/** Without APTPL nothing outlives the process, so nothing is stored. */
function encodeState(state: ReservationState): string {
  const kept = state.persist ? state : { ...state, registrations: [], type: 0, holder: -1 };
  const registrations = kept.registrations.map(({ transportId, relativeTargetPort, key }) => ({
    transportId: Buffer.from(transportId).toString('hex'),
    relativeTargetPort,
    key,
  }));
  const { type, holder } = kept;
  return `${JSON.stringify({ version: VERSION, registrations, type, holder }, null, 2)}\n`;
}

function parseState(text: string, path: string): ReservationState {
  const fail = (why: string): never => {
    throw new StorageError('CORRUPT', `persistent reservations: ${why}`, {
      path,
      help: 'Remove the file to start without persistent reservations.',
    });
  };
  if (text.length > MAX_FILE_LENGTH) fail('the file is too long');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    fail('the file is not JSON');
  }
  const { version, registrations, type, holder } = (value ?? {}) as Record<string, unknown>;
  if (version !== VERSION) fail(`version ${String(version)} is not ${VERSION}`);
  if (!Array.isArray(registrations) || registrations.length > MAX_REGISTRATIONS)
    return fail('no list of registrations');
  const parsed = registrations.map((entry) => parseRegistration(entry) ?? fail('a registration is malformed'));
  if (parsed.length === 0) return { generation: 0, persist: false, registrations: [], type: 0, holder: -1 };
  if (typeof type !== 'number' || (type !== 0 && !isReservationType(type))) return fail('no such reservation type');
  const hasHolder = type !== 0 && !isAllRegistrants(type);
  const valid = Number.isInteger(holder) && (hasHolder ? parsed[holder as number] !== undefined : holder === -1);
  if (!valid) fail('the holder is not registered');
  return { generation: 0, persist: true, registrations: parsed, type, holder: holder as number };
}

function parseRegistration(entry: unknown): Registration | undefined {
  const { transportId, relativeTargetPort, key } = (entry ?? {}) as Record<string, unknown>;
  if (typeof transportId !== 'string' || !/^([0-9a-f]{2}){24,300}$/.test(transportId)) return undefined;
  if (typeof key !== 'string' || !/^[0-9a-f]{16}$/.test(key) || /^0+$/.test(key)) return undefined;
  const port = Number.isInteger(relativeTargetPort) ? (relativeTargetPort as number) : -1;
  if (port < 0 || port > 0xffff) return undefined;
  const parsed = parseTransportId(Buffer.from(transportId, 'hex'), 0);
  if (parsed === undefined) return undefined;
  return { port: parsed.port, transportId: parsed.bytes, relativeTargetPort: port, key };
}
