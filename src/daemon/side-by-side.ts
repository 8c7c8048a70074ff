/**
 * Runs tasks side by side, so many at a time, begun in their order. Those of one lane run one after the other.
 *
 * @param laneOf tasks with the same key share a lane; undefined: the task has one to itself
 * @param run must not fail
 */
export async function sideBySide<T>(
  tasks: readonly T[],
  limit: number,
  laneOf: (task: T) => string | undefined,
  run: (task: T) => Promise<void>,
): Promise<void> {
  const lanes = new Map<unknown, T[]>();
  for (const task of tasks) {
    const key = laneOf(task) ?? task;
    const lane = lanes.get(key);
    if (lane === undefined) lanes.set(key, [task]);
    else lane.push(task);
  }
  const waiting = [...lanes.values()];
  const work = async (): Promise<void> => {
    for (let lane = waiting.shift(); lane !== undefined; lane = waiting.shift()) {
      for (const task of lane) await run(task);
    }
  };
  await Promise.all(Array.from({ length: Math.min(limit, waiting.length) }, work));
}
