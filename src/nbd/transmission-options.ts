import type { ChunkShare } from '../wire/chunk-pool.ts';
import type { Output } from '../wire/output.ts';
import type { NbdCounters } from './counters.ts';
import type { Agreement } from './handshake.ts';
import type { NbdLimits } from './limits.ts';

/** What transmission needs of its connection. */
export interface TransmissionOptions {
  readonly agreement: Agreement;
  readonly output: Output;
  readonly share: ChunkShare;
  readonly limits: NbdLimits;
  readonly counters: NbdCounters;
  /** Something was queued, or may go on, outside of receive(). */
  readonly wake: () => void;
  /** The client says goodbye. */
  readonly disconnect: () => void;
}
