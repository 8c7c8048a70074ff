import type { LogicalUnit } from './unit.ts';

/** What block limits (VPD page B0h) says and the commands keep to; in logical blocks. */
export interface BlockLimits {
  readonly transfer: number;
  readonly optimalTransfer: number;
  /** OPTIMAL TRANSFER LENGTH GRANULARITY. */
  readonly granularity: number;
  /** MAXIMUM COMPARE AND WRITE LENGTH: a field of one byte. */
  readonly compareAndWrite: number;
  readonly unmap: number;
  /** Block descriptors in one UNMAP. */
  readonly unmapDescriptors: number;
  readonly unmapGranularity: number;
  readonly writeSame: number;
}

/** The page of the host: a smaller write makes it read first. */
const GRANULARITY = 4096;
const OPTIMAL_TRANSFER = 1024 * 1024;
/** Blocks: initiators take a larger limit for a mistake. */
const MAX_UNMAP = 1024 ** 2;
/** Bounds what one command with a pattern other than zeros can write. */
const MAX_WRITE_SAME = 256 * 1024 ** 2;

export function limitsOf(unit: LogicalUnit): BlockLimits {
  const { blockSize } = unit;
  return {
    transfer: unit.maxTransferBlocks,
    optimalTransfer: Math.min(OPTIMAL_TRANSFER / blockSize, unit.maxTransferBlocks),
    granularity: Math.max(2 ** unit.physicalExponent, GRANULARITY / blockSize),
    compareAndWrite: 128,
    unmap: MAX_UNMAP,
    unmapDescriptors: 256,
    unmapGranularity: Math.max(1, Math.ceil(unit.image.limits.discardUnit / blockSize)),
    writeSame: MAX_WRITE_SAME / blockSize,
  };
}
