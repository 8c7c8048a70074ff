/** What EXTENDED COPY takes: reported by RECEIVE COPY RESULTS and VPD page 8Fh. */

export const MAX_TARGET_DESCRIPTORS = 8;
export const MAX_SEGMENT_DESCRIPTORS = 64;
/** All descriptors of one parameter list, bytes. */
export const MAX_DESCRIPTOR_LIST = 4096;
/** One segment, bytes. */
export const MAX_COPY_SEGMENT = 64 * 1024 * 1024;

/** Identification descriptor target descriptor; block to block segment descriptor. */
export const IDENTIFICATION_DESCRIPTOR = 0xe4;
export const BLOCK_TO_BLOCK = 0x02;
export const COPY_DESCRIPTOR_TYPES: readonly number[] = [BLOCK_TO_BLOCK, IDENTIFICATION_DESCRIPTOR];

/** Third-party copy commands with their service actions. */
export const COPY_COMMANDS: readonly { opcode: number; actions: readonly number[] }[] = [
  { opcode: 0x83, actions: [0x00] },
  { opcode: 0x84, actions: [0x00, 0x03] },
];
