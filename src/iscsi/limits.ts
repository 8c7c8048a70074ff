/** Bounds on what peers can make a portal spend. Times in ms, sizes in bytes. */
export interface IscsiLimits {
  /** Commands that a session may have outstanding: the width of its CmdSN window. At most 1000. */
  readonly queueDepth: number;
  /** Immediate commands beside those. */
  readonly immediateCommands: number;
  /** Connections in all, logged in or not. */
  readonly maxConnections: number;
  /** Connections that have not logged in; one more evicts the oldest of them. */
  readonly maxPendingLogins: number;
  readonly loginTimeoutMs: number;
  /** A silent initiator is sent a NOP-In after this time. 0: never. */
  readonly keepaliveMs: number;
  /** No answer to the NOP-In, or no progress in sending, for this time: the connection is dropped. */
  readonly stallTimeoutMs: number;
  /** Queued output above which a session's commands and its socket wait. */
  readonly outputLimit: number;
  /** Data buffers that one session may hold; a single command may always run. */
  readonly sessionMemory: number;
  /** Data buffers of all sessions together, but for one command of each. */
  readonly totalMemory: number;
  /** Longest transfer of one command. */
  readonly maxTransferLength: number;
  /** Longest data segment that we take. */
  readonly maxRecvDataSegmentLength: number;
  readonly maxBurstLength: number;
  readonly firstBurstLength: number;
  readonly maxOutstandingR2T: number;
  /** Text of one login or text negotiation, over all its PDUs. */
  readonly maxTextLength: number;
}

export const DEFAULT_LIMITS: IscsiLimits = {
  queueDepth: 128,
  immediateCommands: 16,
  maxConnections: 1024,
  maxPendingLogins: 128,
  loginTimeoutMs: 15_000,
  keepaliveMs: 20_000,
  stallTimeoutMs: 30_000,
  outputLimit: 4 * 1024 * 1024,
  sessionMemory: 64 * 1024 * 1024,
  totalMemory: 256 * 1024 * 1024,
  maxTransferLength: 32 * 1024 * 1024,
  maxRecvDataSegmentLength: 262144,
  maxBurstLength: 1024 * 1024,
  firstBurstLength: 262144,
  maxOutstandingR2T: 4,
  maxTextLength: 16 * 1024,
};
