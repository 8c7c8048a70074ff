/** The groups of tests, in the order in which they run: what is quick and fails first stands first. */

export interface Group {
  /** The directory under test/, unless `folder` says otherwise. */
  readonly name: string;
  /** Where its files are, below test/. What is in another group's folder is that group's alone. */
  readonly folder?: string;
  /** Seconds that the group may take on two cores. One file that takes twice as long hangs and fails; three times that ends the group. */
  readonly budgetSeconds: number;
  /** Test files at a time. */
  readonly concurrency: number;
  /** Files that take longest, without `.test.ts`: they begin first, in this order, so that none is left to run alone in the end. */
  readonly longest?: readonly string[];
  /** Part of `npm run quick`. */
  readonly quick: boolean;
}

export const GROUPS: readonly Group[] = [
  { name: 'tidy', budgetSeconds: 30, concurrency: 2, quick: true },
  { name: 'unit', budgetSeconds: 210, concurrency: 2, quick: true },
  { name: 'property', budgetSeconds: 165, concurrency: 2, longest: ['qcow2-power-cut'], quick: false },
  { name: 'fuzz', budgetSeconds: 90, concurrency: 2, longest: ['native-ring'], quick: false },
  // One file more than there are cores: programs that are started one after the other mostly wait for the disk, and for each other.
  {
    name: 'conformance',
    budgetSeconds: 540,
    concurrency: 3,
    longest: ['convert-resume', 'amend', 'snapshot-extremes', 'qcow2-matrix', 'qcow2-check'],
    quick: false,
  },
  {
    name: 'e2e',
    budgetSeconds: 500,
    concurrency: 2,
    longest: ['iscsi/libiscsi-suite', 'package/tarball', 'iscsi/bad-input', 'convert/resume', 'package/checkout'],
    quick: false,
  },
  // Emulated machines.
  {
    name: 'vm',
    folder: 'e2e/vm',
    budgetSeconds: 720,
    concurrency: 2,
    longest: ['survival', 'libiscsi', 'package', 'storage', 'targetcli', 'images', 'export'],
    quick: false,
  },
  { name: 'bench', budgetSeconds: 130, concurrency: 1, quick: false },
];
