import { ImageError, UsageError } from '../../formats/core/errors.ts';
import type { SnapshotInfo } from '../../formats/image/layer.ts';

/** What of a snapshot the user wrote; undefined: either. */
export type SelectBy = 'id' | 'name' | undefined;

/**
 * The one snapshot that a person means. Names may repeat, and may look like the ids of others: what fits several is refused, not guessed.
 *
 * @throws {ImageError} NOT_FOUND with what there is; {UsageError} USAGE when several fit
 */
export function selectSnapshot<T extends Pick<SnapshotInfo, 'id' | 'name'>>(
  snapshots: readonly T[],
  text: string,
  by: SelectBy,
  path: string,
): T {
  const fitting = fittingSnapshots(snapshots, text, by);
  const [first, second] = fitting;
  if (first === undefined) {
    const what = by === undefined ? '' : ` with the ${by}`;
    throw new ImageError('NOT_FOUND', `there is no snapshot${what} ${JSON.stringify(text)}`, {
      path,
      help: snapshots.length === 0 ? 'The image has no internal snapshots.' : `Snapshots: ${listed(snapshots)}`,
    });
  }
  if (second === undefined) return first;
  const byId = fitting.filter(({ id }) => id === text);
  const help =
    by === undefined && byId.length === 1
      ? `Say --id for ${listed(byId)}, or --name for ${listed(fitting.filter(({ name }) => name === text))}.`
      : `Say which by its id: --id ${fitting.map(({ id }) => id).join(' or --id ')}.`;
  throw new UsageError('USAGE', `${JSON.stringify(text)} is the snapshots ${listed(fitting)}`, { path, help });
}

/** All that a text may mean. */
export function fittingSnapshots<T extends Pick<SnapshotInfo, 'id' | 'name'>>(
  snapshots: readonly T[],
  text: string,
  by: SelectBy,
): T[] {
  return snapshots.filter(({ id, name }) => (by !== 'name' && id === text) || (by !== 'id' && name === text));
}

const LISTED = 10;

function listed(snapshots: readonly Pick<SnapshotInfo, 'id' | 'name'>[]): string {
  const some = snapshots.slice(0, LISTED).map(({ id, name }) => `${id} (${name})`);
  return snapshots.length > LISTED ? `${some.join(', ')} and ${snapshots.length - LISTED} more` : some.join(', ');
}
