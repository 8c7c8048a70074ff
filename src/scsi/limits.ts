import type { LogicalUnit } from './unit.ts';

/** What block limits (VPD page B0h) says and the commands keep to; in logical blocks. */
export interface BlockLimits {
  readonly transfer: number;
  readonly optimalTransfer: number;
  /** MAXIMUM COMPARE AND WRITE LENGTH: a field of one byte. */
  readonly compareAndWrite: number;
  readonly unmap: number;
  /** Block descriptors in one UNMAP. */
  readonly unmapDescriptors: number;
  readonly unmapGranularity: number;
  readonly writeSame: number;
}

const OPTIMAL_TRANSFER = 1024 * 1024;
const MAX_UNMAP = 4 * 1024 ** 3;
/** Bounds what one command with a pattern other than zeros can write. */
const MAX_WRITE_SAME = 256 * 1024 ** 2;

export function limitsOf(unit: LogicalUnit): BlockLimits {
  const { blockSize } = unit;
  return {
    transfer: unit.maxTransferBlocks,
    optimalTransfer: OPTIMAL_TRANSFER / blockSize,
    compareAndWrite: 128,
    unmap: MAX_UNMAP / blockSize,
    unmapDescriptors: 256,
    unmapGranularity: Math.max(1, Math.ceil(unit.image.limits.discardUnit / blockSize)),
    writeSame: MAX_WRITE_SAME / blockSize,
  };
}
