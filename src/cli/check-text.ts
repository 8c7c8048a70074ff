import type { ImageCheck } from '../../formats/index.ts';

/** What `qemu-img check` says of the same counts, as text. Ends with a newline. */
export function renderCheck(check: ImageCheck): string {
  const parts: string[] = [];
  if (check.corruptionsFixed + check.leaksFixed > 0) {
    parts.push(
      'The following inconsistencies were found and repaired:\n\n' +
        `    ${check.leaksFixed} leaked clusters\n    ${check.corruptionsFixed} corruptions\n\n` +
        'Double checking the fixed image now...\n',
    );
  }
  if (check.corruptions + check.leaks + check.checkErrors === 0) {
    parts.push('No errors were found on the image.\n');
  }
  if (check.corruptions > 0) {
    parts.push(
      `\n${check.corruptions} errors were found on the image.\n` +
        'Data may be corrupted, or further writes to the image may corrupt it.\n',
    );
  }
  if (check.leaks > 0) {
    parts.push(
      `\n${check.leaks} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n`,
    );
  }
  if (check.checkErrors > 0) parts.push(`\n${check.checkErrors} internal errors have occurred during the check.\n`);
  const { totalClusters: total, allocatedClusters: allocated } = check;
  if (total > 0 && allocated > 0) {
    const percent = (part: number, of: number): string => ((part * 100) / of).toFixed(2);
    parts.push(
      `${allocated}/${total} = ${percent(allocated, total)}% allocated, ` +
        `${percent(check.fragmentedClusters, allocated)}% fragmented, ` +
        `${percent(check.compressedClusters, allocated)}% compressed clusters\n`,
    );
  }
  if (check.imageEndOffset > 0) parts.push(`Image end offset: ${check.imageEndOffset}\n`);
  return parts.join('');
}

/** The same with the members of QEMU's ImageCheck: counts of 0 are left out. */
export function checkMembers(filename: string, check: ImageCheck): Record<string, unknown> {
  const some = (count: number): number | undefined => (count === 0 ? undefined : count);
  return {
    filename,
    format: check.format,
    'check-errors': check.checkErrors,
    'image-end-offset': some(check.imageEndOffset),
    corruptions: some(check.corruptions),
    leaks: some(check.leaks),
    'corruptions-fixed': some(check.corruptionsFixed),
    'leaks-fixed': some(check.leaksFixed),
    'total-clusters': some(check.totalClusters),
    'allocated-clusters': some(check.allocatedClusters),
    'fragmented-clusters': some(check.fragmentedClusters),
    'compressed-clusters': some(check.compressedClusters),
  };
}
