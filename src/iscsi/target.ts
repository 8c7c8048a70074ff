import { UsageError } from '../../formats/core/errors.ts';
import type { DeviceServer, Nexus } from '../scsi/task.ts';
import { CHAP_ALGORITHMS, type ChapCredentials, checkCredentials, DEFAULT_ALGORITHMS } from './chap.ts';
import {
  LOGIN_OUT_OF_RESOURCES,
  LOGIN_SERVICE_UNAVAILABLE,
  LOGIN_SESSION_DOES_NOT_EXIST,
  LOGIN_TOO_MANY_CONNECTIONS,
  type LoginTarget,
} from './login.ts';
import { checkTargetName, initiatorPortName, iscsiTransportId, normalizeName } from './names.ts';
import { Session, type SessionOptions } from './session.ts';

export interface IscsiTargetOptions {
  /** iSCSI name: iqn., eui. or naa. */
  readonly name: string;
  /** For people to read, at most 255 bytes. */
  readonly alias?: string | undefined;
  /** Runs the commands. */
  readonly device: DeviceServer;
  /** What initiators must prove; absent: nothing. */
  readonly chap?: ChapCredentials | undefined;
  /** What we prove to initiators that ask. Its secret must be another one than chap's. */
  readonly mutualChap?: ChapCredentials | undefined;
  /** CHAP_A numbers that are allowed: 5 MD5, 6 SHA1, 7 SHA-256, 8 SHA3-256. Default: all. */
  readonly chapAlgorithms?: readonly number[] | undefined;
  /** Names of initiators that may log in and see the target. Absent: anybody. */
  readonly allowedInitiators?: readonly string[] | undefined;
  /** Target portal group tag. Default 1. */
  readonly portalGroupTag?: number | undefined;
  /** Relative target port identifier, for SCSI. Default 1. */
  readonly relativeTargetPort?: number | undefined;
  /** Default 256. */
  readonly maxSessions?: number | undefined;
}

/** Nexus ids are unique in the process: device servers keep state by them. */
let lastNexusId = 0;

/** An iSCSI target: a name, who may log in, the device server behind it, and its sessions. */
export class IscsiTarget implements LoginTarget {
  readonly name: string;
  readonly alias: string | undefined;
  readonly device: DeviceServer;
  readonly chap: ChapCredentials | undefined;
  readonly mutualChap: ChapCredentials | undefined;
  readonly chapAlgorithms: readonly number[];
  readonly portalGroupTag: number;
  readonly relativeTargetPort: number;
  /** Normal sessions, also those that are about to log in. */
  readonly sessions: ReadonlySet<Session>;
  readonly #sessions = new Set<Session>();
  /** Sessions that are gone, but whose commands may still run. */
  readonly #ending = new Set<Session>();
  readonly #allowed: ReadonlySet<string> | undefined;
  readonly #maxSessions: number;
  #lastTsih = 0;
  #closed = false;

  /** @throws {UsageError} for names and secrets that cannot be */
  constructor(options: IscsiTargetOptions) {
    this.name = checkTargetName(options.name);
    if (options.alias !== undefined && Buffer.byteLength(options.alias) > 255) {
      throw new UsageError('INVALID', 'the alias of a target is longer than 255 bytes');
    }
    this.alias = options.alias;
    this.device = options.device;
    this.chap = options.chap;
    this.mutualChap = options.mutualChap;
    if (options.chap !== undefined) checkCredentials(options.chap, this.name);
    if (options.mutualChap !== undefined) {
      checkCredentials(options.mutualChap, `${this.name}, mutual`);
      if (options.chap === undefined) throw new UsageError('INVALID', `${this.name}: mutual CHAP needs CHAP`);
      if (options.chap.secret === options.mutualChap.secret) {
        throw new UsageError('INVALID', `${this.name}: the two CHAP secrets must differ`, {
          help: 'with one secret for both directions an answer of ours could be replayed to us',
        });
      }
    }
    this.chapAlgorithms = options.chapAlgorithms ?? DEFAULT_ALGORITHMS;
    if (this.chapAlgorithms.length === 0 || !this.chapAlgorithms.every((n) => CHAP_ALGORITHMS.has(n))) {
      throw new UsageError('INVALID', `${this.name}: CHAP algorithms are 5, 6, 7 and 8`);
    }
    this.#allowed = options.allowedInitiators && new Set(options.allowedInitiators.map(normalizeName));
    this.portalGroupTag = options.portalGroupTag ?? 1;
    this.relativeTargetPort = options.relativeTargetPort ?? 1;
    this.#maxSessions = options.maxSessions ?? 256;
    this.sessions = this.#sessions;
  }

  allows(initiator: string): boolean {
    return this.#allowed === undefined || this.#allowed.has(initiator);
  }

  /**
   * Makes the session of a login that has succeeded, and finds the one that it replaces: the same initiator port (name and ISID)
   * has one session (RFC 7143 section 6.3.5).
   *
   * @param tsih as in the Login Request: 0 for a new session
   * @returns both, or the login status that refuses it
   */
  join(
    options: Omit<SessionOptions, 'tsih' | 'nexus'>,
    tsih: number,
  ): { session: Session; replaced: Session | undefined } | number {
    if (this.#closed) return LOGIN_SERVICE_UNAVAILABLE;
    const replaced = [...this.#sessions].find((session) => isSamePort(session.options, options));
    if (tsih !== 0) {
      if (replaced === undefined || replaced.options.tsih !== tsih) return LOGIN_SESSION_DOES_NOT_EXIST;
      // One connection per session: the same one may come back, a second may not be added.
      if (replaced.options.cid !== options.cid) return LOGIN_TOO_MANY_CONNECTIONS;
    }
    if (replaced === undefined && this.#sessions.size >= this.#maxSessions) return LOGIN_OUT_OF_RESOURCES;
    if (replaced !== undefined) this.#sessions.delete(replaced);
    const initiatorPort = initiatorPortName(options.initiator, options.isid);
    const nexus: Nexus = {
      initiatorPort,
      transportId: iscsiTransportId(initiatorPort),
      relativeTargetPort: this.relativeTargetPort,
      id: ++lastNexusId,
    };
    const session = new Session({ ...options, nexus, tsih: tsih === 0 ? this.#newTsih() : tsih });
    this.#sessions.add(session);
    return { session, replaced };
  }

  /** The session enters full-feature phase. */
  attach(session: Session): void {
    this.device.attach(session.options.nexus as Nexus);
  }

  leave(session: Session): void {
    this.#sessions.delete(session);
    if (!session.ended) return;
    this.#ending.add(session);
    const ended = (): void => void this.#ending.delete(session);
    session.terminate().then(ended, ended);
  }

  /**
   * Resolves when nothing runs any more of earlier sessions of the same initiator port, however they ended; undefined when nothing does now.
   * Until then the initiator must not be served: what it sends again could be overtaken by what it had given up.
   */
  earlierEnded(session: Session): Promise<unknown> | undefined {
    const earlier = [...this.#ending].filter((other) => isSamePort(other.options, session.options));
    return earlier.length === 0 ? undefined : Promise.all(earlier.map((other) => other.terminate()));
  }

  /** No further logins. */
  close(): void {
    this.#closed = true;
  }

  #newTsih(): number {
    const used = new Set([...this.#sessions].map((session) => session.options.tsih));
    do this.#lastTsih = (this.#lastTsih % 0xffff) + 1;
    while (used.has(this.#lastTsih));
    return this.#lastTsih;
  }
}

type PortName = Pick<SessionOptions, 'initiator' | 'isid'>;

function isSamePort(one: PortName, other: PortName): boolean {
  return one.initiator === other.initiator && Buffer.compare(one.isid, other.isid) === 0;
}
