/**
 * Ends things one after another, each whatever came of those before it: images are closed, and so flushed, also when a portal or
 * an endpoint could not be.
 *
 * @throws the first failure there was, after all have been tried
 */
export async function closeInOrder(steps: readonly (() => Promise<unknown> | undefined)[]): Promise<void> {
  const failures: unknown[] = [];
  for (const step of steps) {
    try {
      await step();
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length > 0) throw failures[0];
}

/** Ends things side by side and waits for all. @throws the first failure there was */
export async function closeTogether(things: readonly { close(): Promise<void> }[]): Promise<void> {
  const results = await Promise.allSettled(things.map((thing) => thing.close()));
  const failed = results.find((result) => result.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
}
