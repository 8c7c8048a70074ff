/** How reservations of another nexus treat a command (SPC-4 table 66, SBC-3 table 13). */
export const FREE = 0;
/** Conflicts with EXCLUSIVE ACCESS. */
export const READS = 1;
/** Conflicts with WRITE EXCLUSIVE too. */
export const WRITES = 2;
export type Access = 0 | 1 | 2;
