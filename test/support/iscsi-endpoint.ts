/** An endpoint of the target without a socket, with an initiator of ours at its other end: what tests of sessions are made of. */

import type { Edge } from '../../src/edge/connection.ts';
import { newCounters } from '../../src/iscsi/counters.ts';
import { crc32c } from '../../src/iscsi/digest.ts';
import { Endpoint, type EndpointHost } from '../../src/iscsi/endpoint.ts';
import { DEFAULT_LIMITS, type IscsiLimits } from '../../src/iscsi/limits.ts';
import type { LoginAuthentication } from '../../src/iscsi/login.ts';
import { IscsiTarget, type IscsiTargetOptions } from '../../src/iscsi/target.ts';
import { ChunkPool } from '../../src/wire/chunk-pool.ts';
import type { Batch } from '../../src/wire/output.ts';
import { FakeDeviceServer } from './fake-device-server.ts';
import { IscsiInitiator } from './iscsi-initiator.ts';

export const TARGET_NAME = 'iqn.2026-11.lunette.test:disk';

/** One end-to-end connection in memory. */
export class MemoryConnection implements Edge {
  readonly endpoint: Endpoint;
  readonly initiator: IscsiInitiator;
  /** Why the target closed it. */
  closeReason: string | undefined;
  paused = false;
  /** The initiator's side is not read: batches stay with the "socket". */
  stuck = false;
  readonly untaken: Batch[] = [];
  /** Bytes are handed to the target in pieces of this size. */
  chunk: number | undefined;
  #inbox: Uint8Array[] = [];
  #woken = false;

  constructor(host: EndpointHost) {
    this.endpoint = new Endpoint(host, this, '127.0.0.1:3260');
    this.initiator = new IscsiInitiator({ write: (bytes) => this.#deliver(bytes), destroy: () => this.drop() });
  }

  /** The initiator's socket dies. */
  drop(): void {
    this.endpoint.gone();
    // A socket gives back what it will never send.
    for (const batch of this.untaken.splice(0)) batch.taken();
  }

  write(batch: Batch): void {
    if (this.stuck) {
      this.untaken.push(batch);
      return;
    }
    for (let i = 0; i < batch.count; i++) this.initiator.receive(Buffer.from(batch.piece(i)));
    // As a socket does: later, not within write().
    queueMicrotask(batch.taken);
  }

  /** The initiator reads again. */
  unstick(): void {
    this.stuck = false;
    for (const batch of this.untaken.splice(0)) this.write(batch);
  }

  pause(): void {
    this.paused = true;
  }

  resume(): void {
    this.paused = false;
    for (const bytes of this.#inbox.splice(0)) this.#deliver(bytes);
  }

  wake(): void {
    if (this.#woken) return;
    this.#woken = true;
    queueMicrotask(() => {
      this.#woken = false;
      this.endpoint.flush();
    });
  }

  close(reason: string): void {
    this.closeReason = reason;
    queueMicrotask(() => {
      this.drop();
      this.initiator.gone();
    });
  }

  #deliver(bytes: Uint8Array): void {
    if (this.paused) {
      this.#inbox.push(bytes);
      return;
    }
    if (this.chunk === undefined) {
      this.endpoint.receive(bytes);
      return;
    }
    for (let at = 0; at < bytes.length; at += this.chunk) this.endpoint.receive(bytes.slice(at, at + this.chunk));
  }
}

/** A portal without sockets: targets, limits, and connections in memory. */
export class MemoryPortal implements EndpointHost {
  readonly limits: IscsiLimits;
  readonly counters = newCounters();
  readonly pool: ChunkPool;
  readonly crc32c = crc32c;
  readonly discovery: LoginAuthentication;
  readonly device = new FakeDeviceServer();
  readonly targets: IscsiTarget[];
  readonly internalErrors: unknown[] = [];
  /** Why logins failed. */
  readonly refusals: { status: number; reason: string }[] = [];

  constructor(
    options: {
      limits?: Partial<IscsiLimits>;
      target?: Partial<IscsiTargetOptions>;
      discovery?: LoginAuthentication;
      more?: readonly string[];
    } = {},
  ) {
    this.limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.pool = new ChunkPool(this.limits.totalMemory);
    this.discovery = options.discovery ?? {};
    this.targets = [TARGET_NAME, ...(options.more ?? [])].map(
      (name) => new IscsiTarget({ name, device: this.device, ...options.target }),
    );
  }

  get target(): IscsiTarget {
    return this.targets[0] as IscsiTarget;
  }

  connect(): MemoryConnection {
    return new MemoryConnection(this);
  }

  /** A connection that has logged in. */
  async session(keys: Readonly<Record<string, string>> = {}, isid?: string): Promise<MemoryConnection> {
    const connection = this.connect();
    await connection.initiator.login({ target: TARGET_NAME, keys, ...(isid === undefined ? {} : { isid }) });
    return connection;
  }

  findTarget(name: string): IscsiTarget | undefined {
    return this.targets.find((target) => target.name === name);
  }

  targetsFor(initiator: string, localAddress: string): { name: string; addresses: string[] }[] {
    return this.targets
      .filter((target) => target.allows(initiator))
      .map(({ name, portalGroupTag }) => ({ name, addresses: [`${localAddress},${portalGroupTag}`] }));
  }

  loggedIn(): void {}

  internalError(error: unknown): void {
    this.internalErrors.push(error);
  }

  loginFailed(_endpoint: Endpoint, _login: unknown, status: number, reason: string): void {
    this.refusals.push({ status, reason });
  }
}
