/** What the exit statuses mean, for people. */
export const EXIT_STATUSES: readonly (readonly [status: string, meaning: string])[] = [
  ['0', 'Done. compare: the disks hold the same. check: no errors.'],
  ['1', 'Failed; one line on stderr says why. compare: the disks differ.'],
  ['2', 'The command line is wrong. check: errors were found.'],
  ['3', 'check: only space that nothing uses was found.'],
  ['63', 'check: the format has nothing to check.'],
];
