/** The groups of tests, in the order in which they run: what is quick and fails first stands first. */

export interface Group {
  /** The directory under test/. */
  readonly name: string;
  /** Seconds that the group may take on two cores. One file that takes as long hangs and fails; three times that ends the group. */
  readonly budgetSeconds: number;
  /** Test files at a time. */
  readonly concurrency: number;
  /** Part of `npm run quick`. */
  readonly quick: boolean;
}

export const GROUPS: readonly Group[] = [
  { name: 'tidy', budgetSeconds: 60, concurrency: 2, quick: true },
  { name: 'unit', budgetSeconds: 120, concurrency: 2, quick: true },
  { name: 'property', budgetSeconds: 180, concurrency: 2, quick: false },
  { name: 'fuzz', budgetSeconds: 180, concurrency: 2, quick: false },
  { name: 'conformance', budgetSeconds: 420, concurrency: 2, quick: false },
  // Servers, initiators and kills: one file at a time, so that one does not starve the other's timers.
  { name: 'e2e', budgetSeconds: 1800, concurrency: 1, quick: false },
  { name: 'bench', budgetSeconds: 240, concurrency: 1, quick: false },
];
