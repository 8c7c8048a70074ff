import { MAX_PAYLOAD } from './protocol.ts';

/** Bounds on what clients can make a server spend. Times in ms, sizes in bytes. */
export interface NbdLimits {
  /** Connections in all, negotiating or not. */
  readonly maxConnections: number;
  /** Connections that are still negotiating; one more evicts the oldest of them. */
  readonly maxPendingHandshakes: number;
  /** From the first byte to the choice of an export, TLS included. */
  readonly handshakeTimeoutMs: number;
  /** A client that asks nothing for this long is dropped. 0: never, as kernels and virtual machines like it. */
  readonly idleTimeoutMs: number;
  /** A client that takes no answers, or stops in the middle of a request, for this long is dropped. */
  readonly stallTimeoutMs: number;
  /** Options that one connection may send. */
  readonly maxOptions: number;
  /** Longest data of an option. */
  readonly maxOptionLength: number;
  /** Longest payload of a read or write. */
  readonly maxPayload: number;
  /** Requests of one connection that are under way; the rest stays in its socket. */
  readonly maxRequests: number;
  /** Queued answers above which a connection's requests wait. */
  readonly outputLimit: number;
  /** Memory that one connection may hold. */
  readonly connectionMemory: number;
  /** Memory of all connections together, but for what each has of its own. */
  readonly totalMemory: number;
  /** A request of so much always runs when it is the only one of its connection: clients that hold all memory do not stop the others. */
  readonly ownMemory: number;
}

export const DEFAULT_LIMITS: NbdLimits = {
  maxConnections: 256,
  maxPendingHandshakes: 64,
  handshakeTimeoutMs: 15_000,
  idleTimeoutMs: 0,
  stallTimeoutMs: 60_000,
  maxOptions: 1000,
  maxOptionLength: 64 * 1024,
  maxPayload: MAX_PAYLOAD,
  maxRequests: 256,
  outputLimit: 8 * 1024 * 1024,
  connectionMemory: 64 * 1024 * 1024,
  totalMemory: 256 * 1024 * 1024,
  ownMemory: 2 * 1024 * 1024,
};
